//! Sends back all that comes through a TCP connection, for test guests: `echo-back ADDRESS:PORT`. Tells how many bytes those were.
//!
//! What a guest's shell has for this reads and writes a kilobyte at a time, which an emulated host makes many times slower.

use std::io::{Read, Result, Write};
use std::net::{Shutdown, TcpStream};

fn main() -> Result<()> {
    let address = std::env::args().nth(1).expect("an address with a port");
    let mut connection = TcpStream::connect(address)?;
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0u64;
    loop {
        let length = connection.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        connection.write_all(&buffer[..length])?;
        total += length as u64;
    }
    connection.shutdown(Shutdown::Write)?;
    println!("echoed {total}");
    Ok(())
}
