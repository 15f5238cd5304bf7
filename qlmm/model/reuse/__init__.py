"""Computing once what several rows or steps need."""
