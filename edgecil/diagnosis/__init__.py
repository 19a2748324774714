"""Looking at a workspace: where features lie, what the network looks at, whom it mistakes."""
