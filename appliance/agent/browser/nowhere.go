package browser

import (
	"context"
	"errors"
	"net"

	"github.com/pion/transport/v5"
)

// nowhere is a network without interfaces: ICE uses the sockets that it is
// given, and looks for none itself.
type nowhere struct{}

var errNowhere = errors.New("this is not a way to the browser")

func (nowhere) ListenPacket(string, string) (net.PacketConn, error)           { return nil, errNowhere }
func (nowhere) ListenUDP(string, *net.UDPAddr) (transport.UDPConn, error)     { return nil, errNowhere }
func (nowhere) ListenTCP(string, *net.TCPAddr) (transport.TCPListener, error) { return nil, errNowhere }
func (nowhere) Dial(string, string) (net.Conn, error)                         { return nil, errNowhere }
func (nowhere) ResolveIPAddr(string, string) (*net.IPAddr, error)             { return nil, errNowhere }
func (nowhere) ResolveUDPAddr(string, string) (*net.UDPAddr, error)           { return nil, errNowhere }
func (nowhere) ResolveTCPAddr(string, string) (*net.TCPAddr, error)           { return nil, errNowhere }
func (nowhere) Interfaces() ([]*transport.Interface, error)                   { return nil, nil }
func (nowhere) InterfaceByIndex(int) (*transport.Interface, error)            { return nil, errNowhere }
func (nowhere) InterfaceByName(string) (*transport.Interface, error)          { return nil, errNowhere }
func (nowhere) CreateDialer(*net.Dialer) transport.Dialer                     { return nowhere{} }

func (nowhere) DialUDP(string, *net.UDPAddr, *net.UDPAddr) (transport.UDPConn, error) {
	return nil, errNowhere
}

func (nowhere) DialTCP(string, *net.TCPAddr, *net.TCPAddr) (transport.TCPConn, error) {
	return nil, errNowhere
}

func (nowhere) CreateListenConfig(*net.ListenConfig) transport.ListenConfig { return deaf{} }

// deaf listens nowhere.
type deaf struct{}

func (deaf) Listen(context.Context, string, string) (net.Listener, error) { return nil, errNowhere }
func (deaf) ListenPacket(context.Context, string, string) (net.PacketConn, error) {
	return nil, errNowhere
}
