"""``python -m tracerouter.defaults``: writes the JSON Schemas beside it, from the models."""

import json
from pathlib import Path

from tracerouter.config import Settings
from tracerouter.policy import PolicyFile

for name, shape in (("policy", PolicyFile), ("tracerouter", Settings)):
    path = Path(__file__).parent / f"{name}.schema.json"
    path.write_text(json.dumps(shape.model_json_schema(), indent=2) + "\n", encoding="utf-8")
