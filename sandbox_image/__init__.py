"""What runs inside the box, and the wire format it shares with the host."""
