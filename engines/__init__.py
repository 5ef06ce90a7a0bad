"""Bundles and the engines that run them: what the trainer hands to the station."""
