"""The boards, one module each: a file ``cost_tenants.py`` with a ``BOARD`` makes the board ``cost-tenants``.

To add a panel, add a call to a row: title, query, unit, and how to read it and what to do. Then run
``python -m dashboards``. Queries are plain PromQL; the helpers in ``panels`` add the data source and the matchers for
job and instance, and check every name against the metrics that are emitted.
"""
