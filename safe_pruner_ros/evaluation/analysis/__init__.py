"""What attention does over an episode, measured; each file answers one question of the paper."""
