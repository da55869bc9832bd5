import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Creates a session, sends a message and uploads a recording, with an HttpClient as it comes: it offers HTTP/2.
 * Prints each answer as its status and its body. Arguments: URL, token, workspace, recording.
 */
public final class Client {
    private static final String BOUNDARY = "boundary-of-the-client";
    private static final Pattern ID = Pattern.compile("\"id\":\"([0-9a-f-]{36})\"");

    private final String url;
    private final String token;

    private Client(String url, String token) {
        this.url = url;
        this.token = token;
    }

    public static void main(String[] arguments) throws Exception {
        Client client = new Client(arguments[0], arguments[1]);
        String workspace = arguments[2];
        byte[] recording = Files.readAllBytes(Path.of(arguments[3]));
        String chats = "/api/workspaces/" + workspace + "/chats/";

        String session = client.post(chats, "application/json", BodyPublishers.ofString("{\"name\":\"From Java\"}"));
        Matcher id = ID.matcher(session);
        if (!id.find()) {
            throw new IllegalStateException("no id in " + session);
        }
        String message = "{\"role\":\"user\",\"content\":\"Gr\u00fc\u00dfe aus Java: what is the capital of France?\"}";
        client.post(chats + id.group(1) + "/messages/", "application/json", BodyPublishers.ofString(message));

        String multipart = "multipart/form-data; boundary=" + BOUNDARY;
        byte[] form = form(workspace, recording);
        client.post("/api/transcribe-audio/", multipart, BodyPublishers.ofByteArray(form));
        // Of unknown length, so in chunks.
        client.post("/api/transcribe-audio/", multipart, BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(form)));
    }

    /** Each request has a client of its own, whose first request makes the offer. */
    private String post(String path, String type, BodyPublisher body) throws IOException, InterruptedException {
        HttpRequest request = HttpRequest.newBuilder(URI.create(url + path))
            .header("Authorization", "Bearer " + token)
            .header("Content-Type", type)
            .POST(body)
            .build();
        HttpResponse<String> answer = HttpClient.newHttpClient().send(request, BodyHandlers.ofString());
        System.out.println(answer.statusCode() + " " + answer.body());
        return answer.body();
    }

    private static byte[] form(String workspace, byte[] recording) {
        byte[] head = ("--" + BOUNDARY + "\r\n"
            + "Content-Disposition: form-data; name=\"workspace_id\"\r\n\r\n" + workspace + "\r\n"
            + "--" + BOUNDARY + "\r\n"
            + "Content-Disposition: form-data; name=\"audio_file\"; filename=\"recording.mp3\"\r\n"
            + "Content-Type: audio/mpeg\r\n\r\n").getBytes(StandardCharsets.UTF_8);
        byte[] end = ("\r\n--" + BOUNDARY + "--\r\n").getBytes(StandardCharsets.UTF_8);
        byte[] form = new byte[head.length + recording.length + end.length];
        int at = 0;
        for (byte[] part : List.of(head, recording, end)) {
            System.arraycopy(part, 0, form, at, part.length);
            at += part.length;
        }
        return form;
    }
}
