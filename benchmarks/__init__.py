"""How fast backupd is, as ratios to the same work done by hand, in one run on one machine."""
