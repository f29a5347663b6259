"""What each binary runs, and the command line that they share."""
