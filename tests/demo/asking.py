"""What the demo's tests ask."""

REQUEST = "A shopper compares prices in a browser with twenty tabs open. Make it work over the air."
