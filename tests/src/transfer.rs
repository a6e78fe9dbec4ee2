//! Bulk data over TCP, of which both ends know every byte.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;

/// Data is made in pieces of this many bytes, and no two pieces are alike.
pub const PIECE: usize = 64 << 10;

/// Piece `number`.
fn fill(number: u64, piece: &mut [u8]) {
    let mut state = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for word in piece.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}

/// Sends `pieces` pieces to the first who connects to `address`.
///
/// # Panics
/// On its thread, when the connection breaks.
pub fn send(address: SocketAddr, pieces: u64) -> JoinHandle<()> {
    let listener = TcpListener::bind(address).expect("the address is this host's");
    std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().expect("the guest connects");
        let mut piece = vec![0; PIECE];
        for number in 0..pieces {
            fill(number, &mut piece);
            peer.write_all(&piece).expect("the guest reads on");
        }
    })
}

/// Receives from the first who connects to `address`, and checks that it is exactly `pieces` pieces.
///
/// # Panics
/// On its thread, when it is not.
pub fn receive(address: SocketAddr, pieces: u64) -> JoinHandle<()> {
    let listener = TcpListener::bind(address).expect("the address is this host's");
    std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().expect("the guest connects");
        let (mut expected, mut got) = (vec![0; PIECE], vec![0; PIECE]);
        for number in 0..pieces {
            fill(number, &mut expected);
            if let Err(error) = peer.read_exact(&mut got) {
                panic!("piece {number} of {pieces} did not come: {error}");
            }
            assert!(got == expected, "piece {number} of {pieces} is not what was sent");
        }
        assert_eq!(peer.read(&mut got).expect("the guest closes"), 0, "more came than was sent");
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
        let receiver = receive(to, 20);
        data[PIECE * 7] ^= 1;
        let _ = std::net::TcpStream::connect(to).unwrap().write_all(&data);
        assert!(receiver.join().is_err(), "a changed byte is noticed");
    }
}
