"""The static model, against code whose numbers are known."""
