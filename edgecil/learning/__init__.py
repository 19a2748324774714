"""From a request to a committed version: everything is checked before the first step."""
