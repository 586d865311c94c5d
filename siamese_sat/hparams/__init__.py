"""The search for the settings that train best."""
