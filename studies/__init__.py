"""What the documentation quotes: studies make the records of ``docs/records``, and pages of them (``make records``)."""
