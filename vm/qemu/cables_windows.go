package qemu

// usual is this host's layout of cables: no process inherits a socket here.
var usual layout = named{}
