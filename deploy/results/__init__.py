"""What a run leaves for people: report, plots, live page, evidence, a prediction."""
