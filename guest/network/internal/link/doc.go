// Package link makes and removes the interfaces and namespaces of containers, by
// netlink alone. Every interface it makes carries Group, by which a later process
// recognises what was left over.
package link
