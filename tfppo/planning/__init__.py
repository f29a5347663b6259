"""What an iteration costs: on paper, and by the clock."""
