"""The files that the demo runs on, and the JSON Schemas of the two files that a user writes."""
