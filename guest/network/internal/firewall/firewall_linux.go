package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
)

// TableName is the name of the table, of family inet.
const TableName = "berth"

// Bridge is what the rules need to know about a network.
type Bridge struct {
	Name       string
	Internal   bool // nothing leaves or enters
	ICC        bool // containers reach each other
	Subnets    []netip.Prefix
	Masquerade []netip.Prefix // those from which what leaves takes the machine's address
	Gateways   []netip.Addr

	// Who else reaches the containers at their own addresses, for IPv4 and IPv6.
	Direct4, Direct6 Direct
	Trusted          []string // interfaces from which published ports are open at those, too
}

// Direct is what reaches a bridge's containers at their own addresses from outside
// of the bridge.
type Direct int

const (
	Closed    Direct = iota // nothing
	Published               // published ports, and ICMP
	Open                    // everything
)

// Forward is a published port: what arrives at HostIP (or at any address of the
// machine's) and HostPort goes to To. Without a HostPort, To is open where its bridge
// lets published ports be reached at their own addresses.
type Forward struct {
	Proto    uint8 // IPPROTO_TCP, ...
	HostIP   netip.Addr
	HostPort uint16
	To       netip.AddrPort
}

// Firewall is safe for concurrent use.
type Firewall struct {
	mu    sync.Mutex // over everything, transactions included
	conn  *nftables.Conn
	table *nftables.Table
	sets  sets
	made  bool // the table is ours and in the kernel
	self  Machine

	bridges  map[string]Bridge
	forwards map[Forward]struct{}
}

// Machine is what the rules need to know about the machine itself.
type Machine struct {
	Local  []netip.Addr // its own addresses, besides the loopback and the bridges' gateways
	Uplink string       // the interface to its host
	Host   netip.Addr   // from which the host reaches containers by Uplink; the zero Addr: it does not
}

// New makes a Firewall in the calling thread's network namespace. It changes
// nothing in the kernel until the first bridge is added.
func New(self Machine) (*Firewall, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("cannot open nftables: %w", err)
	}
	f := &Firewall{
		conn:     conn,
		table:    &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet},
		self:     self,
		bridges:  map[string]Bridge{},
		forwards: map[Forward]struct{}{},
	}
	f.sets = newSets(f.table)
	return f, nil
}

// Close frees the socket. The rules stay.
func (f *Firewall) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.conn.CloseLasting()
}

// Reset replaces the table by one with exactly these bridges and forwards, at
// once. With no bridge there is no table afterwards.
func (f *Firewall) Reset(bridges []Bridge, forwards []Forward) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.bridges)
	clear(f.forwards)
	for _, b := range bridges {
		f.bridges[b.Name] = b
	}
	for _, fw := range forwards {
		f.forwards[fw] = struct{}{}
	}
	return f.replace()
}

// replace writes the whole table. Called with mu held.
func (f *Firewall) replace() error {
	// Deleting needs a table to delete.
	f.conn.AddTable(f.table)
	f.conn.DelTable(f.table)
	f.made = len(f.bridges) > 0
	if f.made {
		f.conn.AddTable(f.table)
		if err := f.sets.add(f.conn, f.self.Local); err != nil {
			return err
		}
		addChains(f.conn, f.table, f.sets, f.self)
		var all []element
		for _, b := range f.bridges {
			all = append(all, bridgeElements(f.sets, b)...)
		}
		for fw := range f.forwards {
			all = append(all, forwardElements(f.sets, fw)...)
		}
		f.each(all, f.conn.SetAddElements)
	}
	if err := f.conn.Flush(); err != nil {
		f.made = false
		return fmt.Errorf("cannot write the firewall's table: %w", err)
	}
	return nil
}

// AddBridge lets a bridge take part. Adding it again is no error.
func (f *Firewall) AddBridge(b Bridge) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.bridges[b.Name]; ok {
		return nil
	}
	f.bridges[b.Name] = b
	var err error
	if f.made {
		err = f.change(bridgeElements(f.sets, b), f.conn.SetAddElements)
	} else {
		err = f.replace()
	}
	if err != nil {
		delete(f.bridges, b.Name)
	}
	return err
}

// RemoveBridge undoes AddBridge. Removing what is not there is no error.
func (f *Firewall) RemoveBridge(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.bridges[name]
	if !ok {
		return nil
	}
	delete(f.bridges, name)
	return f.change(bridgeElements(f.sets, b), f.conn.SetDeleteElements)
}

// Swap removes some forwards and adds others, at once.
func (f *Firewall) Swap(remove, add []Forward) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var gone, fresh []Forward
	for _, fw := range remove {
		if _, ok := f.forwards[fw]; ok {
			delete(f.forwards, fw)
			gone = append(gone, fw)
		}
	}
	for _, fw := range add {
		if _, ok := f.forwards[fw]; !ok {
			f.forwards[fw] = struct{}{}
			fresh = append(fresh, fw)
		}
	}
	if !f.made || len(gone)+len(fresh) == 0 {
		return nil
	}
	f.each(allForwards(f.sets, gone), f.conn.SetDeleteElements)
	f.each(allForwards(f.sets, fresh), f.conn.SetAddElements)
	if err := f.conn.Flush(); err != nil {
		for _, fw := range fresh {
			delete(f.forwards, fw)
		}
		for _, fw := range gone {
			f.forwards[fw] = struct{}{}
		}
		return fmt.Errorf("cannot change published ports: %w", err)
	}
	return nil
}

func allForwards(s sets, forwards []Forward) (all []element) {
	for _, fw := range forwards {
		all = append(all, forwardElements(s, fw)...)
	}
	return all
}

type element struct {
	set *nftables.Set
	el  nftables.SetElement
}

// change is one transaction of element operations.
func (f *Firewall) change(els []element, op func(*nftables.Set, []nftables.SetElement) error) error {
	f.each(els, op)
	if err := f.conn.Flush(); err != nil {
		return fmt.Errorf("cannot change the firewall: %w", err)
	}
	return nil
}

// perMessage is how many elements go into one message: enough that a transaction has
// few, as the kernel answers each before anybody reads the answers, and the socket
// holds some hundreds of them; and no more than fit.
const perMessage = 256

// each queues operations on elements, in their order for each set. The operations can
// only fail on anonymous sets and on elements too large for netlink, which ours are
// not.
func (f *Firewall) each(els []element, op func(*nftables.Set, []nftables.SetElement) error) {
	var sets []*nftables.Set
	of := map[*nftables.Set][]nftables.SetElement{}
	for _, e := range els {
		if of[e.set] == nil {
			sets = append(sets, e.set)
		}
		of[e.set] = append(of[e.set], e.el)
	}
	for _, set := range sets {
		for some := range slices.Chunk(of[set], perMessage) {
			if err := op(set, some); err != nil {
				panic("firewall: " + err.Error())
			}
		}
	}
}
