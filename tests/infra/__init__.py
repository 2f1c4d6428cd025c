"""Tests of the containers, the dashboards and the alerts."""
