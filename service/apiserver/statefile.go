package apiserver

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/sluice-net/sluice/service"
)

// The state file is one line of JSON, its header, and then the gzipped JSON of a service.State. It is written aside and
// renamed, so that it is the old one or the new one and never half of one; the checksum is against disks.

// stateVersion is the version of the file's form: one that is not this is not read.
const stateVersion = 1

type stateHeader struct {
	Kind    string    `json:"kind"`
	Version int       `json:"version"`
	Node    string    `json:"node"`
	Proxy   string    `json:"serviceProxyName,omitempty"`
	Saved   time.Time `json:"saved"`
	Bytes   int       `json:"bytes"`
	SHA256  string    `json:"sha256"`
}

const stateKind = "SluiceState"

// saveState writes the file.
func saveState(file string, h stateHeader, s *service.State) error {
	var body bytes.Buffer
	zip, err := gzip.NewWriterLevel(&body, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if err := errors.Join(s.Write(zip), zip.Close()); err != nil {
		return err
	}
	sum := sha256.Sum256(body.Bytes())
	h.Kind, h.Version, h.Bytes, h.SHA256 = stateKind, stateVersion, body.Len(), hex.EncodeToString(sum[:])
	head, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	aside, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*")
	if err != nil {
		return err
	}
	_, err = aside.Write(append(append(head, '\n'), body.Bytes()...))
	err = errors.Join(err, aside.Sync(), aside.Close())
	if err == nil {
		err = os.Rename(aside.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(aside.Name()))
	}
	return nil
}

// loadState tells c of what is in the file, if that is of this node. A file that is not there is os.ErrNotExist.
func loadState(file string, want stateHeader, c *service.Catalog) (saved time.Time, err error) {
	f, err := os.Open(file)
	if err != nil {
		return saved, err
	}
	defer f.Close()
	refuse := func(format string, args ...any) (time.Time, error) {
		return time.Time{}, fmt.Errorf("state file %s: "+format, append([]any{file}, args...)...)
	}
	r := bufio.NewReader(f)
	line, err := r.ReadSlice('\n')
	if err != nil {
		return refuse("no header")
	}
	var h stateHeader
	if err := json.Unmarshal(line, &h); err != nil || h.Kind != stateKind {
		return refuse("not a state of Sluice")
	}
	if h.Version != stateVersion {
		return refuse("version %d, and this is %d", h.Version, stateVersion)
	}
	if h.Node != want.Node || h.Proxy != want.Proxy {
		return refuse("it is of node %q and serviceProxyName %q, and this is %q and %q", h.Node, h.Proxy, want.Node, want.Proxy)
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(h.Bytes)+1))
	if err != nil {
		return refuse("%w", err)
	}
	if sum := sha256.Sum256(body); len(body) != h.Bytes || hex.EncodeToString(sum[:]) != h.SHA256 {
		return refuse("damaged")
	}
	zip, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return refuse("%w", err)
	}
	if err := c.Restore(zip); err != nil {
		return refuse("%w", err)
	}
	return h.Saved, nil
}
