"""Few-shot curves: how good models are that were trained with few labelled cases."""
