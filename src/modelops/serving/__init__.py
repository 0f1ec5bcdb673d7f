"""The heart: which models exist, what they need, who gets a slot, and the engines that answer."""
