"""torchlasso."""
