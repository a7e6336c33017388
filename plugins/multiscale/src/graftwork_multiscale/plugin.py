"""What the plugin offers; imports no framework."""
