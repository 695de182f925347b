"""Class activation maps in Captum's LayerAttribution convention."""
