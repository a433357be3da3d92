"""What an attack on a run finds out, in figures and pictures: canaries, membership and gradient inversion."""
