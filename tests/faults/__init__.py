"""What dies, and when: kill points, a proxy that breaks connections, and what must hold afterwards."""
