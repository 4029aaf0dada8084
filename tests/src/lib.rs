//! Harness: starts real gateways and simulated engines for the end-to-end tests.
