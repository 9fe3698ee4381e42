"""Policy updates: how a learner's weights come to decide, and how they go again."""
