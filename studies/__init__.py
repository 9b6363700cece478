"""What the documentation quotes: each module makes one record in ``docs/records``; ``make records`` runs them all."""
