//! What becomes of a delivery, decided purely: outcome + attempts so far + policy → verdict.
