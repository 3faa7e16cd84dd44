"""The trainer (extra `liteseg[train]`): `python -m liteseg train --config configs/NAME.yaml`."""
