package stdio

import "io"

// detachReader reads what is typed up to the first occurrence of keys, which ends it
// with ErrDetached. What may be their beginning is held back until more is typed, or
// the input ends.
type detachReader struct {
	r    io.Reader
	keys []byte
	back []int // the longest proper prefix of keys that keys[:i+1] ends in (Knuth, Morris, Pratt)
	held int   // how much of keys was typed last
	in   []byte
	out  []byte // to be read next
	err  error  // what comes after out
}

func newDetachReader(r io.Reader, keys []byte) *detachReader {
	d := &detachReader{r: r, keys: keys, back: make([]int, len(keys)), in: make([]byte, 4096)}
	for i, n := 1, 0; i < len(keys); i++ {
		for n > 0 && keys[i] != keys[n] {
			n = d.back[n-1]
		}
		if keys[i] == keys[n] {
			n++
		}
		d.back[i] = n
	}
	return d
}

// Read implements io.Reader.
func (d *detachReader) Read(p []byte) (int, error) {
	for len(d.out) == 0 {
		if d.err != nil {
			return 0, d.err
		}
		n, err := d.r.Read(d.in)
		for _, c := range d.in[:n] {
			if d.typed(c); d.err != nil {
				break
			}
		}
		if err != nil && d.err == nil {
			d.out, d.held, d.err = append(d.out, d.keys[:d.held]...), 0, err
		}
	}
	n := copy(p, d.out)
	d.out = append(d.out[:0], d.out[n:]...)
	return n, nil
}

func (d *detachReader) typed(c byte) {
	for d.held > 0 && d.keys[d.held] != c {
		shorter := d.back[d.held-1]
		d.out = append(d.out, d.keys[:d.held-shorter]...)
		d.held = shorter
	}
	if d.keys[d.held] != c {
		d.out = append(d.out, c)
		return
	}
	if d.held++; d.held == len(d.keys) {
		d.err = ErrDetached
	}
}
