"""How the tables came to be. A migration only adds (expand), so that the release before runs on its result."""
