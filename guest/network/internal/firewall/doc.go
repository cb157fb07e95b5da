// Package firewall holds the machine's nftables rules for containers: one table,
// "inet berth", whose rules never change and whose sets and maps name the bridges
// and published ports. A change is one netlink transaction of a few elements; the
// whole table is replaced in one transaction when the engine starts, so what is
// in use is never without its rules.
//
// It also makes the redirect to the DNS server in a container's own namespace.
package firewall
