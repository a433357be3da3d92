"""The server's contacts with Flower: its SuperLink, its grid and the submission of runs."""
