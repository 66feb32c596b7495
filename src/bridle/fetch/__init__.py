"""Published sets from the web: what can be downloaded freely, and how to get the others."""

from bridle.fetch.fetching import Fetched, fetch
from bridle.fetch.sources import SOURCES, Remote, Source, find_source

__all__ = ["SOURCES", "Fetched", "Remote", "Source", "fetch", "find_source"]
