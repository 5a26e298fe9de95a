"""The store: tables, work ledger, writer, index, searches and the embedded server.

The only room with SQL. It knows no torch: vectors arrive as numpy arrays.
"""
