"""What decides when to step: the on-policy base, REINFORCE and PPO, and the callbacks that watch them."""
