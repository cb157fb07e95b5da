package machine

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"
)

// Keys are a machine's SSH keys, made for it alone.
type Keys struct {
	HostPEM   string        // private key of the guest's server, OpenSSH PEM
	Host      ssh.PublicKey // what the client must be shown
	Client    ssh.Signer    // what the user logs in with
	ClientPEM string        // the same, OpenSSH PEM
}

// AuthorizedKey is the line by which the guest knows the user.
func (k Keys) AuthorizedKey() string {
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(k.Client.PublicKey())), "\n") + " berth"
}

// ClientKeyFile is the user's private key, for other SSH clients.
func (m Machine) ClientKeyFile() string { return filepath.Join(m.DataDir, "ssh_client_ed25519") }

func (m Machine) hostKeyFile() string { return filepath.Join(m.DataDir, "ssh_host_ed25519") }

// Keys reads the machine's SSH keys and makes those that are missing.
func (m Machine) Keys() (Keys, error) {
	host, hostPEM, err := loadKey(m.hostKeyFile(), "berth host "+m.Name)
	if err != nil {
		return Keys{}, err
	}
	client, clientPEM, err := loadKey(m.ClientKeyFile(), "berth "+m.Name)
	if err != nil {
		return Keys{}, err
	}
	return Keys{HostPEM: hostPEM, Host: host.PublicKey(), Client: client, ClientPEM: clientPEM}, nil
}

func loadKey(file, comment string) (ssh.Signer, string, error) {
	body, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		body, err = makeKey(file, comment)
	}
	if err != nil {
		return nil, "", fmt.Errorf("cannot read the ssh key: %w", err)
	}
	signer, err := ssh.ParsePrivateKey(body)
	if err != nil {
		return nil, "", fmt.Errorf("the ssh key %s is damaged: delete it and start the machine again, which makes a new one: %w", file, err)
	}
	return signer, string(body), nil
}

func makeKey(file, comment string) ([]byte, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, comment)
	if err != nil {
		return nil, err
	}
	body := pem.EncodeToMemory(block)
	return body, WriteFile(file, body, 0o600)
}
