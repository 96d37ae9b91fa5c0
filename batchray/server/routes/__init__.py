"""The endpoints, one module for each kind of resource.  Each class lists its routes in `routes()`."""
