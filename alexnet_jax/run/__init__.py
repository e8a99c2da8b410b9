"""What a run writes into its folder and prints: records, audit, profile, speed."""
