//! Bulk data over TCP, of which both ends know every byte.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::thread::JoinHandle;

/// Data is made in pieces of this many bytes, and no two pieces are alike.
pub const PIECE: usize = 64 << 10;

/// How far apart numbers are that differ from piece to piece.
const NUMBERED: usize = 256;

/// Pieces of the same random bytes, but for a number every [`NUMBERED`] bytes that no other piece has: quickly made also by a
/// program that was not optimized, on a host that is emulated.
struct Pieces(Vec<u8>);

impl Pieces {
    fn new() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let words = (0..PIECE / 8).flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        Self(words.collect())
    }

    /// Piece `number`.
    fn get(&mut self, number: u64) -> &[u8] {
        for (place, part) in (0..).zip(self.0.chunks_exact_mut(NUMBERED)) {
            part[..8].copy_from_slice(&(number * (PIECE / NUMBERED) as u64 + place).to_le_bytes());
        }
        &self.0
    }
}

fn send_to(mut peer: impl Write, pieces: u64) {
    let mut all = Pieces::new();
    for number in 0..pieces {
        peer.write_all(all.get(number)).expect("the guest reads on");
    }
}

fn receive_from(mut peer: impl Read, pieces: u64) {
    let (mut all, mut got) = (Pieces::new(), vec![0; PIECE]);
    for number in 0..pieces {
        if let Err(error) = peer.read_exact(&mut got) {
            panic!("piece {number} of {pieces} did not come: {error}");
        }
        assert!(got == all.get(number), "piece {number} of {pieces} is not what was sent");
    }
    assert_eq!(peer.read(&mut got).expect("the guest closes"), 0, "more came than was sent");
}

/// Sends `pieces` pieces to the first who connects to `address`, and checks that exactly they come back, while more are sent.
///
/// # Panics
/// On its thread, when they do not.
pub fn exchange(address: SocketAddr, pieces: u64) -> JoinHandle<()> {
    let listener = TcpListener::bind(address).expect("the address is this host's");
    std::thread::spawn(move || {
        let (peer, _) = listener.accept().expect("the guest connects");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                send_to(&peer, pieces);
                peer.shutdown(Shutdown::Write).expect("the connection stands");
            });
            receive_from(&peer, pieces);
        });
    })
}

/// Sends `pieces` pieces to the first who connects to `address`.
///
/// # Panics
/// On its thread, when the connection breaks.
pub fn send(address: SocketAddr, pieces: u64) -> JoinHandle<()> {
    let listener = TcpListener::bind(address).expect("the address is this host's");
    std::thread::spawn(move || {
        send_to(listener.accept().expect("the guest connects").0, pieces);
    })
}

/// Receives from the first who connects to `address`, and checks that it is exactly `pieces` pieces.
///
/// # Panics
/// On its thread, when it is not.
pub fn receive(address: SocketAddr, pieces: u64) -> JoinHandle<()> {
    let listener = TcpListener::bind(address).expect("the address is this host's");
    std::thread::spawn(move || {
        receive_from(listener.accept().expect("the guest connects").0, pieces);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_what_is_expected() {
        let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let port = |_| TcpListener::bind(address).unwrap().local_addr().unwrap();
        let (from, to) = (port(0), port(1));
        let (sender, receiver) = (send(from, 20), receive(to, 20));
        let mut data = Vec::new();
        std::net::TcpStream::connect(from).unwrap().read_to_end(&mut data).unwrap();
        sender.join().unwrap();
        assert_ne!(data[..PIECE], data[PIECE..2 * PIECE]);
        std::net::TcpStream::connect(to).unwrap().write_all(&data).unwrap();
        receiver.join().unwrap();
        let both = port(2);
        let exchange = exchange(both, 20);
        let mut peer = std::net::TcpStream::connect(both).unwrap();
        let mut back = peer.try_clone().unwrap();
        std::io::copy(&mut peer, &mut back).unwrap();
        back.shutdown(Shutdown::Write).unwrap();
        exchange.join().unwrap();
        let receiver = receive(to, 20);
        data[PIECE * 7 + 9] ^= 1;
        let _ = std::net::TcpStream::connect(to).unwrap().write_all(&data);
        assert!(receiver.join().is_err(), "a changed byte is noticed");
    }
}
