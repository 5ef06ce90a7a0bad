"""What the station watches itself and its camera for."""
