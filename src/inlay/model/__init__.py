"""Where bases, schemes and methods meet: any number of adapters on one frozen model."""
