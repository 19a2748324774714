"""What several methods are composed of: lessons, snapshots, dreams, importance, learned pixels."""
