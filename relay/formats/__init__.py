"""What an event looks like on the wire, one format a module. Not where it goes: that is `relay.sinks`."""
