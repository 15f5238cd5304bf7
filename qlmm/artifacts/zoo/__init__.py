"""The small adapters that come with qlmm."""
